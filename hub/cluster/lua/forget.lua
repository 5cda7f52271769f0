-- The room is over: nobody is in it, and nobody is waited for.
-- KEYS  1 roster of the room     ARGV  1 presence prefix  2 call
local prefix, call = ARGV[1], ARGV[2]
local stored = redis.call('HGETALL', KEYS[1])
for i = 1, #stored, 2 do
  local member = call .. '|' .. stored[i]
  local entry = cjson.decode(stored[i + 1])
  redis.call('ZREM', prefix .. 'interrupted', member)
  redis.call('SREM', prefix .. 'held:' .. entry.incarnation, 'r|' .. member)
end
redis.call('DEL', KEYS[1], prefix .. 'people:' .. call)
return #stored / 2
