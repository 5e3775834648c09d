CREATE TABLE contacts.contacts (
    contact_id uuid PRIMARY KEY,
    display_name text NOT NULL,
    email text,
    phone text,
    company text,
    position text,
    source text,
    metadata jsonb,
    create_time timestamptz NOT NULL,
    update_time timestamptz NOT NULL,
    delete_time timestamptz,
    revision bigint NOT NULL,
    CONSTRAINT contacts_reachable CHECK (email IS NOT NULL OR phone IS NOT NULL)
);

-- Lists show the newest first.
CREATE INDEX contacts_create_time_idx ON contacts.contacts (create_time DESC, contact_id DESC);
CREATE INDEX contacts_email_idx ON contacts.contacts (lower(email));
CREATE INDEX contacts_phone_idx ON contacts.contacts (phone);

GRANT USAGE ON SCHEMA contacts TO crm_contacts;
GRANT SELECT, INSERT, UPDATE, DELETE ON contacts.contacts TO crm_contacts;
