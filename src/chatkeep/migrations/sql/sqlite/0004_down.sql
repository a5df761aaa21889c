-- Running downgrade 0004 -> 0003

DROP TABLE word_index;

UPDATE chatkeep_schema SET version_num='0003' WHERE chatkeep_schema.version_num = '0004';

