-- Deleted tenants are removed for good once their purge_time has passed (state
-- 5: it goes on), or when an operator asks for it.
ALTER TABLE tenants
    -- Who asked for it. NULL: its time came.
    ADD COLUMN purge_requester text;
CREATE INDEX tenants_purge_idx ON tenants (purge_time) WHERE state IN (4, 5);
ALTER TABLE clusters
    -- Not before this is another database removed.
    ADD COLUMN purge_turn_time timestamptz NOT NULL DEFAULT '-infinity';

-- What is left of them: the certificate of the deletion, and a slug that rests,
-- so that old links lead to nobody else.
CREATE TABLE purged_tenants (
    tenant_id uuid PRIMARY KEY,
    slug text NOT NULL,
    cluster text NOT NULL,
    database text NOT NULL,
    requester text,
    login_count integer NOT NULL,
    delete_time timestamptz,
    purge_time timestamptz NOT NULL,
    -- From then on no backup has it.
    backup_expire_time timestamptz NOT NULL,
    slug_free_time timestamptz NOT NULL
);
CREATE INDEX purged_tenants_slug_idx ON purged_tenants (slug, slug_free_time);
