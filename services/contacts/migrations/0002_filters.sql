-- Phone numbers are compared by their digits, however people write them.
CREATE INDEX contacts_phone_key_idx ON contacts.contacts (translate(phone, ' ()-./', ''));
-- For `metadata @>`.
CREATE INDEX contacts_metadata_idx ON contacts.contacts USING gin (metadata jsonb_path_ops);
