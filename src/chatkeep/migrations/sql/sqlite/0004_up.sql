-- Running upgrade 0003 -> 0004

CREATE TABLE word_index (
        number INTEGER NOT NULL PRIMARY KEY CHECK (number = 1),
        rule INTEGER NOT NULL,
        target INTEGER,
        place BLOB
    ) STRICT;

INSERT INTO word_index (number, rule) VALUES (1, 1);

UPDATE chatkeep_schema SET version_num='0004' WHERE chatkeep_schema.version_num = '0003';

