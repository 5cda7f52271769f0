-- Where a room's log stands, with the entries from an offset on. A room without a log gets its epoch here.
-- KEYS  1 head  2 log  3 channel
-- ARGV  1 epoch to use if the room has none  2 first offset wanted  3 how many at most
--       4 by a node that has begun to listen: signed, what tells the others so
-- Answers epoch, offset, entries, and with ARGV 4 how many nodes listen.
local head = redis.call('HMGET', KEYS[1], 'epoch', 'offset')
local epoch, offset = head[1], head[2]
if not epoch then
  epoch, offset = ARGV[1], '0'
  local time = redis.call('TIME')
  redis.call('HSET', KEYS[1], 'epoch', epoch, 'offset', 0, 'born_ms', time[1] * 1000 + math.floor(time[2] / 1000))
  redis.call('PEXPIRE', KEYS[1], 86400000)
  redis.call('DEL', KEYS[2])
end
local entries = {}
for i, entry in ipairs(redis.call('XRANGE', KEYS[2], ARGV[2] .. '-0', '+', 'COUNT', ARGV[3])) do
  entries[i] = entry[2][2]
end
if not ARGV[4] then
  return {epoch, offset, entries}
end
local hearers = redis.call('PUBSUB', 'SHARDNUMSUB', KEYS[3])[2]
-- Alone, it would tell itself.
if hearers ~= 1 then
  redis.call('SPUBLISH', KEYS[3], '\n' .. ARGV[4])
end
return {epoch, offset, entries, hearers}
