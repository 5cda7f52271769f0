-- A new epoch for a room whose log no longer tells everything: all nodes and clients take a fresh snapshot.
-- KEYS  1 head  2 log  3 channel
-- ARGV  1 the epoch that is known to be incomplete ('' for whichever it is)  2 the new epoch  3 signed marker  4 do nothing after (ms)
-- Answers 1, or 0 when somebody else has already done it.
local time = redis.call('TIME')
if time[1] * 1000 + math.floor(time[2] / 1000) > tonumber(ARGV[4]) then
  return redis.error_reply('FENCED too late')
end
local epoch = redis.call('HGET', KEYS[1], 'epoch')
if ARGV[1] ~= '' and epoch ~= ARGV[1] then
  return 0
end
redis.call('DEL', KEYS[1], KEYS[2])
redis.call('HSET', KEYS[1], 'epoch', ARGV[2], 'offset', 0)
redis.call('PEXPIRE', KEYS[1], 86400000)
redis.call('SPUBLISH', KEYS[3], ARGV[2] .. ':0\n' .. ARGV[3])
return 1
