-- What a login writes stands in the log, or its transaction does not commit;
-- and what was written once is never taken away.

-- The platform has it first, from its third version on.
SELECT 'platform.refuse_unrecorded(bigint, text)'::regprocedure;

CREATE FUNCTION contacts.refuse_unrecorded() RETURNS trigger
LANGUAGE plpgsql VOLATILE
AS $$
BEGIN
    PERFORM platform.refuse_unrecorded(new.revision, 'contacts/' || new.contact_id);
    RETURN NULL;
END
$$;
CREATE CONSTRAINT TRIGGER contacts_refuse_unrecorded AFTER INSERT OR UPDATE ON contacts.contacts
    DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW WHEN (current_user <> 'crm_contacts_owner')
    EXECUTE FUNCTION contacts.refuse_unrecorded();

REVOKE UPDATE, DELETE ON contacts.contacts FROM crm_contacts;
GRANT UPDATE (
    display_name, email, phone, company, position, source, metadata, update_time, delete_time,
    revision
) ON contacts.contacts TO crm_contacts;
