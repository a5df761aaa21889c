-- Running downgrade 0001 -> 

DROP TABLE store_state;

DROP TABLE message_words;

DROP TABLE messages;

DROP TABLE conversations;

DROP TABLE users;

DELETE FROM chatkeep_schema WHERE chatkeep_schema.version_num = '0001';

