-- Running downgrade 0006 -> 0005

UPDATE messages m SET status = 'interrupted', terms = NULL, content = coalesce((
        SELECT string_agg(e.text, '' ORDER BY e.n)
        FROM turns t JOIN turn_events e ON e.owner_id = t.owner_id AND e.turn = t.number AND e.kind = 'text'
        WHERE t.owner_id = m.owner_id AND t.conversation_id = m.conversation_id AND t.message_id = m.id), m.content)
    WHERE status = 'in_progress';

DROP INDEX messages_by_model;

DROP TABLE turn_events;

DROP TABLE turns;

UPDATE chatkeep_schema SET served_from = '0004';

UPDATE chatkeep_schema SET version_num='0005' WHERE chatkeep_schema.version_num = '0006';

