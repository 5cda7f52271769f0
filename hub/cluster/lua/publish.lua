-- One event into a room's log: takes the next offset, keeps the event for the recovery window, tells every subscribed node.
-- KEYS  1 head  2 log  3 channel
-- ARGV  1 signed envelope  2 epoch to use if the room has none  3 do nothing after this time (ms)  4 window (ms)  5 length
-- Answers "epoch:offset", or the error FENCED when the publisher has given up or its lease has ended: an event that its
-- node no longer answers for must not appear later.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if now > tonumber(ARGV[3]) then
  return redis.error_reply('FENCED too late')
end
local head = redis.call('HMGET', KEYS[1], 'epoch', 'mark_ms', 'mark')
local epoch = head[1]
if not epoch then
  epoch = ARGV[2]
  redis.call('HSET', KEYS[1], 'epoch', epoch, 'offset', 0, 'born_ms', now)
  redis.call('DEL', KEYS[2])
end
local offset = redis.call('HINCRBY', KEYS[1], 'offset', 1)
local position = string.format('%s:%.0f', epoch, offset)
local wire = position .. '\n' .. ARGV[1]
-- Exactly, not about: an approximate trim removes nothing from a short stream.
redis.call('XADD', KEYS[2], 'MAXLEN', '=', ARGV[5], string.format('%.0f-0', offset), 'e', wire)
local window = tonumber(ARGV[4])
-- The ids are offsets, so age is known from a mark: once the mark is a window old, everything before it is older than that.
if not head[2] or now - head[2] >= window then
  if head[2] then
    redis.call('XTRIM', KEYS[2], 'MINID', '=', head[3] .. '-0')
  end
  redis.call('HSET', KEYS[1], 'mark_ms', now, 'mark', offset)
  -- Until two windows after the last event that may come before the mark moves again.
  redis.call('PEXPIRE', KEYS[2], 3 * window)
  redis.call('PEXPIRE', KEYS[1], 86400000)
end
redis.call('SPUBLISH', KEYS[3], wire)
return position
