-- What PostgreSQL refuses to every login but a superuser's: one statement a line.
-- Files and programs.
COPY (SELECT 1) TO PROGRAM 'true'
COPY (SELECT 1) TO '/tmp/crm-isolation'
COPY (SELECT 'x' AS a) TO PROGRAM 'sh -c "id"'
SELECT pg_read_file('postgresql.conf')
SELECT pg_read_file('/etc/passwd')
SELECT pg_read_binary_file('pg_hba.conf')
SELECT pg_ls_dir('.')
SELECT pg_ls_dir('base', true, true)
SELECT * FROM pg_stat_file('postgresql.conf')
SELECT * FROM pg_ls_logdir()
SELECT * FROM pg_ls_waldir()
SELECT * FROM pg_ls_tmpdir()
SELECT * FROM pg_ls_archive_statusdir()
SELECT pg_current_logfile()
SELECT lo_import('/etc/passwd')
SELECT lo_export(1, '/tmp/crm-isolation')
LOAD 'plpgsql'
LOAD '/tmp/crm-isolation.so'
CREATE FUNCTION pg_temp.mine() RETURNS int LANGUAGE c AS '/tmp/crm-isolation'
CREATE FUNCTION pg_temp.mine() RETURNS int LANGUAGE internal AS 'pg_backend_pid'
CREATE TABLESPACE mine LOCATION '/tmp'
-- What the catalogues keep of all databases and roles.
SELECT * FROM pg_authid
SELECT * FROM pg_shadow
SELECT * FROM pg_user_mapping
SELECT * FROM pg_statistic
SELECT * FROM pg_statistic_ext_data
SELECT * FROM pg_largeobject
SELECT * FROM pg_subscription
SELECT * FROM pg_hba_file_rules
SELECT * FROM pg_file_settings
SELECT * FROM pg_ident_file_mappings
SELECT * FROM pg_backend_memory_contexts
SELECT * FROM pg_shmem_allocations
UPDATE pg_authid SET rolsuper = true
UPDATE pg_database SET datallowconn = true
UPDATE pg_class SET relacl = NULL
INSERT INTO pg_auth_members SELECT * FROM pg_auth_members
DELETE FROM pg_proc
-- The server.
ALTER SYSTEM SET fsync = off
ALTER SYSTEM RESET ALL
SELECT pg_reload_conf()
SELECT pg_rotate_logfile()
SELECT pg_switch_wal()
SELECT pg_create_restore_point('mine')
SELECT pg_backup_start('mine')
SELECT pg_promote()
SELECT pg_wal_replay_pause()
SELECT pg_stat_reset()
SELECT pg_stat_reset_shared('bgwriter')
SELECT pg_log_backend_memory_contexts(pg_backend_pid())
SELECT pg_create_physical_replication_slot('mine')
SELECT pg_create_logical_replication_slot('mine', 'pgoutput')
SELECT pg_replication_origin_create('mine')
SELECT pg_import_system_collations('pg_catalog')
-- Roles, and what superusers alone define.
CREATE ROLE mine
CREATE USER mine SUPERUSER
CREATE EVENT TRIGGER mine ON ddl_command_start EXECUTE FUNCTION mine()
CREATE SUBSCRIPTION mine CONNECTION 'dbname=postgres' PUBLICATION mine WITH (connect = false)
CREATE FOREIGN DATA WRAPPER mine
CREATE ACCESS METHOD mine TYPE TABLE HANDLER heap_tableam_handler
CREATE LANGUAGE mine HANDLER plpgsql_call_handler
