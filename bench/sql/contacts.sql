-- Fills a tenant with $1 contacts, and with the changes that made them. Their
-- ids are what get_contact.sql asks for.
WITH made AS (
    INSERT INTO contacts.contacts (
        contact_id, display_name, email, phone, company, position, source,
        create_time, update_time, revision
    )
    SELECT md5(n::text)::uuid, 'Ada Lovelace', 'ada@example.com', '+44 20 7946 0958',
        'Analytical Engines', 'Programmer', 'referral', now(), now(), n
    FROM generate_series(1, $1) AS n
    RETURNING contact_id, revision
), changed AS (
    INSERT INTO platform.changes (revision, ordinal, kind, name, actor, after)
    SELECT revision, 0, 1, 'contacts/' || contact_id, 'serviceAccounts/bench', ''
    FROM made
)
UPDATE platform.head SET revision = $1
