-- Running upgrade 0003 -> 0004

CREATE TABLE word_index (
        number integer NOT NULL PRIMARY KEY CHECK (number = 1),
        rule integer NOT NULL,
        target integer,
        place uuid
    );

INSERT INTO word_index (number, rule) VALUES (1, 1);

UPDATE chatkeep_schema SET version_num='0004' WHERE chatkeep_schema.version_num = '0003';

