-- When a login that was changed in PostgreSQL was last given another password.
ALTER TABLE logins ADD COLUMN mend_time timestamptz;
