-- Running downgrade 0006 -> 0005

UPDATE store_state SET value = min(coalesce(value, rid), rid)
    FROM (SELECT min(m.rid) AS rid FROM turns t JOIN messages m
        ON m.owner_id = t.owner_id AND m.conversation_id = t.conversation_id AND m.id = t.message_id)
    WHERE name = 'unindexed_from' AND rid IS NOT NULL;

UPDATE messages SET status = 'interrupted', content = coalesce((
        SELECT group_concat(json_extract(e.data, '$.text'), '' ORDER BY e.n) FROM turn_events e
        WHERE e.owner_id = messages.owner_id AND e.conversation_id = messages.conversation_id
            AND e.message_id = messages.id AND e.kind = 'text'), '')
    FROM turns t
    WHERE messages.owner_id = t.owner_id AND messages.conversation_id = t.conversation_id
        AND messages.id = t.message_id AND messages.status = 'in_progress';

UPDATE messages SET status = 'interrupted' WHERE status = 'in_progress';

DROP INDEX messages_by_model;

DROP TABLE turn_events;

DROP TABLE turns;

UPDATE chatkeep_schema SET served_from = '0004';

UPDATE chatkeep_schema SET version_num='0005' WHERE chatkeep_schema.version_num = '0006';

