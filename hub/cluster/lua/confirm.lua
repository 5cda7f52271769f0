-- What was claimed is done.
-- KEYS  1 roster of the room (for the slot)     ARGV  1 presence prefix  2 "call|participant"
redis.call('ZREM', ARGV[1] .. 'claimed', ARGV[2])
return redis.call('HDEL', ARGV[1] .. 'claims', ARGV[2])
