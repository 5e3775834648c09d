-- Addresses are compared without regard to case. What case is, ICU says: a
-- database whose locale knows the letters of ASCII alone finds the same. Keys
-- are in the order of their bytes, which no version of ICU changes.
CREATE INDEX contacts_email_key_idx
    ON contacts.contacts ((lower(email COLLATE "und-x-icu") COLLATE "C"));
