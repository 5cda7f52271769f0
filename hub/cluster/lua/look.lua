-- The records of users, in their order.
-- KEYS  1 nodes (for the slot)     ARGV  1 presence prefix  2 tenant, then the users
local found = {}
for i = 3, #ARGV do
  found[i - 2] = redis.call('HGETALL', ARGV[1] .. 'user:' .. ARGV[2] .. ':' .. ARGV[i])
end
return found
