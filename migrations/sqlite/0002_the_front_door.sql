-- The front door: what is known of mail from strangers beyond its octets, and what is done about it.

-- Reading: what kind of message it is, and the codes in it.

-- Policy for each domain and inbox, and what is held.

-- Threading.

-- Bounces and reports that arrive.

-- Greylisting.
