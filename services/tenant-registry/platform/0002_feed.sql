-- Messaging serves the change feed: it reads the whole log, and writes its own
-- part of it through the functions, as every service does.
GRANT SELECT ON platform.changes TO crm_messaging;
