-- What PostgreSQL refuses to who is no owner of the database: one statement a line.
CREATE DATABASE mine
CREATE SCHEMA mine
CREATE SCHEMA AUTHORIZATION CURRENT_USER
CREATE TABLE platform.mine ()
CREATE TABLE pg_catalog.mine ()
CREATE TEMPORARY TABLE mine ()
CREATE TEMPORARY SEQUENCE mine
CREATE TEMPORARY VIEW mine AS SELECT 1
CREATE TABLE pg_temp.mine ()
SELECT 1 AS x INTO TEMPORARY mine
CREATE FUNCTION platform.mine() RETURNS int LANGUAGE sql AS 'SELECT 1'
CREATE FUNCTION pg_catalog.mine() RETURNS int LANGUAGE sql AS 'SELECT 1'
CREATE TYPE platform.mine AS ENUM ('a')
CREATE DOMAIN platform.mine AS text
CREATE COLLATION platform.mine FROM "C"
CREATE OPERATOR platform.=== (FUNCTION = texteq, LEFTARG = text, RIGHTARG = text)
CREATE PUBLICATION mine
CREATE PUBLICATION mine FOR ALL TABLES
DROP EXTENSION plpgsql
DROP SCHEMA platform CASCADE
ALTER SCHEMA platform OWNER TO CURRENT_USER
ALTER SCHEMA platform RENAME TO mine
ALTER FUNCTION platform.revision() SECURITY INVOKER
ALTER FUNCTION platform.begin_write(uuid, text, text, bytea) RESET ALL
DROP FUNCTION platform.revision()
CREATE OR REPLACE FUNCTION platform.session_service() RETURNS text LANGUAGE sql AS $$ SELECT 'contacts' $$
CREATE RULE mine AS ON SELECT TO platform.head DO INSTEAD NOTHING
CREATE TRIGGER mine AFTER UPDATE ON platform.head EXECUTE FUNCTION platform.refuse_gap()
ALTER TABLE platform.head DISABLE TRIGGER ALL
COMMENT ON DATABASE postgres IS 'mine'
SELECT platform.record_effect(9, 'conversations/x', 2::smallint, 'a', 'c', '')
SELECT platform.record_messaging_effect(9, 'conversations/x', 2::smallint, 'c', '')
SELECT platform.record_contacts_effect(9, 'contacts/x', 1::smallint, 'c', '')
CREATE TABLE contacts.mine ()
CREATE FUNCTION contacts.mine() RETURNS int LANGUAGE sql AS 'SELECT 1'
CREATE VIEW contacts.mine AS SELECT 1
CREATE SEQUENCE contacts.mine
ALTER SCHEMA contacts OWNER TO CURRENT_USER
CREATE TABLE messaging.mine ()
CREATE FUNCTION messaging.mine() RETURNS int LANGUAGE sql AS 'SELECT 1'
CREATE VIEW messaging.mine AS SELECT 1
CREATE SEQUENCE messaging.mine
ALTER SCHEMA messaging OWNER TO CURRENT_USER
