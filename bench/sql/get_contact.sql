SELECT contact_id
     , display_name
     , email
     , phone
     , company
     , position
     , source
     , metadata
     , create_time
     , update_time
     , delete_time
     , revision
FROM contacts.contacts
WHERE contact_id = {contact_id};
