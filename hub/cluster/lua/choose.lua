-- What somebody wants to look like. Answers their record, or false when the lease of the node has lapsed.
-- KEYS  1 lease of the incarnation
-- ARGV  1 presence prefix  2 tenant  3 user  4 the choice (JSON; the text of before where it has none)  5 when it was made (ms), '' for now
--       6 how long the record of somebody without a device is kept (ms)
local prefix, who = ARGV[1], ARGV[2] .. ':' .. ARGV[3]
if redis.call('EXISTS', KEYS[1]) == 0 then
  return false
end
local record = prefix .. 'user:' .. who
local time = redis.call('TIME')
local stored = redis.call('HGET', record, 'choice')
local before = stored and tonumber(stored:match('^%d+')) or 0
local at = tonumber(ARGV[5]) or math.max(time[1] * 1000 + math.floor(time[2] / 1000), before + 1)
-- Brought back after Redis lost it, or by a node that was away: the newest choice holds.
if before < at then
  local choice = cjson.decode(ARGV[4])
  if choice.text == nil and stored then
    choice.text = cjson.decode(stored:match(' (.*)')).text
  end
  local fresh = redis.call('EXISTS', record) == 0
  redis.call('HSET', record, 'choice', string.format('%.0f ', at) .. cjson.encode(choice))
  if fresh then
    redis.call('PEXPIRE', record, ARGV[6])
  end
  redis.call('SPUBLISH', prefix .. 'bell:' .. ARGV[2], cjson.encode({ARGV[3]}))
end
return redis.call('HGETALL', record)
