WITH given AS MATERIALIZED (
    -- What the service makes in Rust: an id that begins with the time, and the time.
    SELECT overlay(
               md5(random()::text)
               PLACING lpad(to_hex((extract(epoch FROM clock_timestamp()) * 1000)::bigint), 12, '0')
               FROM 1 FOR 12
           )::uuid AS contact_id
         , clock_timestamp() AS create_time
), w AS MATERIALIZED (
    SELECT revision, is_new
    FROM platform.begin_write({request_id}, 'CreateContact', :actor, :hash)
), inserted AS (
    INSERT INTO contacts.contacts (
        contact_id, display_name, email, phone, company, position, source, metadata,
        create_time, update_time, revision
    )
    SELECT given.contact_id, :display_name, :email, :phone, :company, :position, :source, NULL,
        given.create_time, given.create_time, w.revision
    FROM w, given
    WHERE w.is_new
    RETURNING contact_id
)
SELECT w.revision
     , platform.end_write(
           w.revision, w.is_new, 0::smallint,
           'contacts/' || inserted.contact_id, 1::smallint, :actor, :after
       )
     , messaging.contact_changed(
           w.revision, w.is_new, given.contact_id, :actor, given.create_time, NULL,
           :conversation, ''
       )
FROM given, w
LEFT JOIN inserted ON true;
