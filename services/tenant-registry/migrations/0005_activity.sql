-- The processes of data services, by their last sign of life.
CREATE TABLE instances (
    service text NOT NULL REFERENCES services,
    instance text NOT NULL,
    -- The most sessions that it may have in one cluster.
    session_budget integer NOT NULL CHECK (session_budget > 0),
    report_number bigint NOT NULL,
    report_time timestamptz NOT NULL,
    PRIMARY KEY (service, instance)
);

-- What tenants do, by process. Figures: not worth a disk's wait.
CREATE UNLOGGED TABLE tenant_activity (
    tenant_id uuid NOT NULL,
    service text NOT NULL,
    instance text NOT NULL,
    -- As of report_time.
    sessions_in_use integer NOT NULL,
    sessions_idle integer NOT NULL,
    calls_waiting integer NOT NULL,
    -- Until report_time.
    sessions_opened bigint NOT NULL,
    closed_idle bigint NOT NULL,
    closed_lifetime bigint NOT NULL,
    closed_evicted bigint NOT NULL,
    closed_busy bigint NOT NULL,
    closed_broken bigint NOT NULL,
    closed_revoked bigint NOT NULL,
    calls bigint NOT NULL,
    calls_refused bigint NOT NULL,
    last_call_time timestamptz,
    report_time timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, service, instance)
);
CREATE INDEX tenant_activity_report_time_idx ON tenant_activity (report_time);
