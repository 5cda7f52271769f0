-- The info of every node whose lease holds.
-- KEYS  1 nodes     ARGV  1 prefix of the leases
local found = {}
local all = redis.call('HGETALL', KEYS[1])
for i = 1, #all, 2 do
  if redis.call('EXISTS', ARGV[1] .. all[i]) == 1 then
    found[#found + 1] = all[i + 1]
  end
end
return found
