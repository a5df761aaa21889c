-- Running downgrade 0001 -> 

DROP FUNCTION chatkeep_append;

DROP TABLE messages;

DROP TABLE conversations;

DROP TABLE users;

DELETE FROM chatkeep_schema WHERE chatkeep_schema.version_num = '0001';

