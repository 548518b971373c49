-- A message may demand that every hop knows how to keep it in TLS, and proves who it is (RFC 8689 §2): said at release, asked
-- at each attempt. What arrived under that demand is answered under it. And beside how often a domain took mail in TLS it is
-- remembered how often its hosts proved themselves, so that less than that is noticed.
ALTER TABLE delivery ADD COLUMN tls_required BIGINT NOT NULL DEFAULT 0;   -- 1: REQUIRETLS
ALTER TABLE message ADD COLUMN require_tls BIGINT NOT NULL DEFAULT 0;   -- 1: came, or is to go, with REQUIRETLS
ALTER TABLE tls_seen ADD COLUMN verified BIGINT NOT NULL DEFAULT 0;   -- deliveries by hosts that proved themselves, one after the other
