-- Running downgrade 0003 -> 0002

DROP INDEX requests_by_location;

UPDATE chatkeep_schema SET version_num='0002' WHERE chatkeep_schema.version_num = '0003';

