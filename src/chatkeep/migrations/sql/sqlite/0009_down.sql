-- Running downgrade 0009 -> 0008

DROP TABLE erasures;

UPDATE chatkeep_schema SET served_from = '0007';

UPDATE chatkeep_schema SET version_num='0008' WHERE chatkeep_schema.version_num = '0009';

