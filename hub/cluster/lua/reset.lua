-- A new epoch for a room whose log no longer tells everything: all nodes and clients take a fresh snapshot.
-- KEYS  1 head  2 log  3 channel
-- ARGV  1 the epoch that is known to be incomplete ('' for whichever it is)  2 the new epoch  3 signed marker  4 do nothing after (ms)
--       5 how long ago the last event happened that the log lacks (ms)
-- Answers 1, or 0 when the log has left that epoch, or has begun a new one since then.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if now > tonumber(ARGV[4]) then
  return redis.error_reply('FENCED too late')
end
local head = redis.call('HMGET', KEYS[1], 'epoch', 'born_ms')
if ARGV[1] ~= '' and head[1] ~= ARGV[1] then
  return 0
end
-- A younger epoch that is older than the event does not do: who took its snapshot before the event would never hear of it.
if ARGV[5] and head[2] and tonumber(head[2]) > now - ARGV[5] then
  return 0
end
redis.call('DEL', KEYS[1], KEYS[2])
redis.call('HSET', KEYS[1], 'epoch', ARGV[2], 'offset', 0, 'born_ms', now)
redis.call('PEXPIRE', KEYS[1], 86400000)
redis.call('SPUBLISH', KEYS[3], ARGV[2] .. ':0\n' .. ARGV[3])
return 1
