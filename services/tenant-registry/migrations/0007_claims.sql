-- Each cluster says itself whose a database is and which state is enforced, by
-- ids that never come again. What the registry knows of it is compared there.
ALTER TABLE tenants
    -- The database's, in its cluster and in every lease.
    ADD COLUMN claim_id uuid NOT NULL DEFAULT gen_random_uuid()
        CONSTRAINT tenants_claim_id_key UNIQUE,
    -- Whether the cluster is known to have the claim.
    ADD COLUMN is_claimed boolean NOT NULL DEFAULT false,
    -- A new one for each state that is wanted, and those wanted before, one of
    -- which the cluster may enforce still.
    ADD COLUMN state_id uuid NOT NULL DEFAULT gen_random_uuid(),
    ADD COLUMN known_state_ids uuid[] NOT NULL DEFAULT '{}';
CREATE INDEX tenants_unclaimed_idx ON tenants (tenant_id) WHERE NOT is_claimed;

-- A spare that was claimed in its cluster for a tenant that was never made, or
-- that the registry has forgotten: it is given to nobody.
ALTER TABLE databases
    DROP CONSTRAINT databases_purpose_check,
    ADD CONSTRAINT databases_purpose_check
        CHECK (purpose IN ('template', 'spare', 'spoiled', 'tenant'));
