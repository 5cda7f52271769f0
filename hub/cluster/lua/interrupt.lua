-- A session lost its socket: its grace begins. Answers 1, or 0 if it is not this node's (any more).
-- KEYS  1 roster of the room     ARGV  1 presence prefix  2 call  3 session  4 incarnation
local stored = redis.call('HGET', KEYS[1], ARGV[3])
if not stored or redis.call('EXISTS', ARGV[1] .. 'lease:' .. ARGV[4]) == 0 then
  return 0
end
local entry = cjson.decode(stored)
if entry.incarnation ~= ARGV[4] or entry.state ~= 'live' then
  return 0
end
local time = redis.call('TIME')
entry.state = 'interrupted'
redis.call('HSET', KEYS[1], ARGV[3], cjson.encode(entry))
redis.call('ZADD', ARGV[1] .. 'interrupted', time[1] * 1000 + math.floor(time[2] / 1000), ARGV[2] .. '|' .. ARGV[3])
return 1
