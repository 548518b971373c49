-- Outcomes: what stood in the way of a recipient, in one word beside the remote's own, so that bounces can be counted
-- by their kind and a complaint is heard once.
ALTER TABLE delivery ADD COLUMN outcome_class TEXT;   -- hard | mailbox_full | policy | content | expired | soft | complaint
