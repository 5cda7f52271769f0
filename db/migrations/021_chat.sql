-- What people write to each other in a call. A direct message is seen by the two whom it is between, and by nobody else
-- who reads this table as the hub.
BEGIN;

CREATE TABLE IF NOT EXISTS chat_messages (
    id                       uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    tenant_id                uuid NOT NULL DEFAULT app_tenant_id(),
    call_id                  uuid NOT NULL,
    sender_id                text NOT NULL CHECK (length(sender_id) BETWEEN 1 AND 128),
    -- NULL: the owner or an admin, from outside of the call.
    participant_id           uuid,
    display_name             text NOT NULL CHECK (length(display_name) <= 200),
    -- Both NULL: to everybody in the call.
    recipient_id             text CHECK (length(recipient_id) BETWEEN 1 AND 128),
    recipient_participant_id uuid,
    text                     text NOT NULL CHECK (length(text) <= 4000),
    -- No foreign key: what it answers may be deleted.
    reply_to                 uuid,
    file_ids                 uuid[] NOT NULL DEFAULT '{}' CHECK (cardinality(file_ids) <= 10),
    -- One clock for all nodes, read while the call's row is held: the order of the messages is the order of the commits.
    sent_at                  timestamptz NOT NULL DEFAULT clock_timestamp(),
    UNIQUE (tenant_id, id),
    FOREIGN KEY (tenant_id, call_id) REFERENCES calls (tenant_id, id) ON DELETE CASCADE,
    CHECK (text <> '' OR cardinality(file_ids) > 0),
    CHECK ((recipient_id IS NULL) = (recipient_participant_id IS NULL))
);
CREATE INDEX IF NOT EXISTS chat_newest ON chat_messages (tenant_id, call_id, sent_at DESC, id DESC);
CREATE INDEX IF NOT EXISTS chat_oldest ON chat_messages (sent_at);

ALTER TABLE chat_messages ENABLE ROW LEVEL SECURITY;
ALTER TABLE chat_messages FORCE ROW LEVEL SECURITY;
DROP POLICY IF EXISTS chat_of_people ON chat_messages;
CREATE POLICY chat_of_people ON chat_messages
    USING (tenant_id = app_tenant_id() AND (recipient_id IS NULL OR app_user_id() IN (sender_id, recipient_id)))
    WITH CHECK (tenant_id = app_tenant_id() AND sender_id = app_user_id());
-- No UPDATE: what was said is not said differently later.
GRANT SELECT, INSERT, DELETE ON chat_messages TO hub_app;

DROP POLICY IF EXISTS chat_for_system ON chat_messages;
CREATE POLICY chat_for_system ON chat_messages TO hub_system USING (true);
-- Never the text. UPDATE of one column, because locking a row asks for it.
GRANT SELECT (id, sent_at), UPDATE (sent_at), DELETE ON chat_messages TO hub_system;

GRANT CREATE ON SCHEMA public TO hub_system;
SET LOCAL ROLE hub_system;

CREATE OR REPLACE FUNCTION system_forget_chat(sent_before timestamptz, at_most integer) RETURNS bigint
    LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS $$
        WITH gone AS (
            DELETE FROM public.chat_messages WHERE id = ANY (ARRAY(
                SELECT m.id FROM public.chat_messages m
                WHERE m.sent_at < sent_before ORDER BY m.sent_at LIMIT at_most FOR UPDATE SKIP LOCKED))
            RETURNING 1)
        SELECT count(*) FROM gone
    $$;

REVOKE ALL ON FUNCTION system_forget_chat(timestamptz, integer) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION system_forget_chat(timestamptz, integer) TO hub_app;

RESET ROLE;
REVOKE CREATE ON SCHEMA public FROM hub_system;

COMMIT;
