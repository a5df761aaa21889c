-- Running downgrade 0002 -> 0001

DROP TABLE requests;

DROP TABLE api_keys;

UPDATE chatkeep_schema SET version_num='0001' WHERE chatkeep_schema.version_num = '0002';

