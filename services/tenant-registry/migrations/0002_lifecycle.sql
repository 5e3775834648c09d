-- The state is what is wanted. It is settled once PostgreSQL enforces it in the
-- tenant's cluster: the logins of a suspended or deleted tenant are shut there.
ALTER TABLE tenants
    ADD COLUMN is_settled boolean NOT NULL DEFAULT true,
    -- The state that undeleting restores.
    ADD COLUMN restore_state smallint,
    -- The number of the tenant's last event; 0: there was none.
    ADD COLUMN event bigint NOT NULL DEFAULT 0;
CREATE INDEX tenants_create_time_idx ON tenants (create_time DESC, tenant_id DESC);
CREATE INDEX tenants_unsettled_idx ON tenants (tenant_id) WHERE NOT is_settled;
CREATE INDEX tenants_refused_idx ON tenants (tenant_id) WHERE state IN (3, 4);
CREATE INDEX tenants_event_idx ON tenants (event) WHERE event > 0;

-- Numbers the events of tenants in the order of their commits, which a sequence
-- would not: whoever has seen number n has seen all before it.
CREATE TABLE tenant_events (
    last bigint NOT NULL
);
INSERT INTO tenant_events (last) VALUES (0);
