-- The front door: what is known of mail from strangers beyond its octets, and what is done about it.

-- Reading: what kind of message it is, and the codes in it.
ALTER TABLE message ADD COLUMN kind TEXT;              -- screen::kind::Kind; NULL on what we send
ALTER TABLE message ADD COLUMN codes TEXT;             -- JSON array of screen::codes::Code; NULL for none

-- Policy for each domain and inbox, and what is held.

-- Threading.

-- Bounces and reports that arrive.

-- Greylisting.
