-- Where many logs stand, each with its last entry: {epoch, offset, {entry}}. One without a log gets its epoch here.
-- KEYS  head, log and channel of each     ARGV  1 epoch for those that have none  2 '1': and how many nodes listen
local answers = {}
for i = 1, #KEYS, 3 do
  local head = redis.call('HMGET', KEYS[i], 'epoch', 'offset')
  local epoch, offset, entries = head[1], head[2], {}
  if not epoch then
    epoch, offset = ARGV[1], '0'
    local time = redis.call('TIME')
    redis.call('HSET', KEYS[i], 'epoch', epoch, 'offset', 0, 'born_ms', time[1] * 1000 + math.floor(time[2] / 1000))
    redis.call('PEXPIRE', KEYS[i], 86400000)
    redis.call('DEL', KEYS[i + 1])
  elseif offset ~= '0' then
    local last = redis.call('XREVRANGE', KEYS[i + 1], '+', '-', 'COUNT', 1)[1]
    entries[1] = last and last[2][2]
  end
  answers[#answers + 1] = {epoch, offset, entries}
  if ARGV[2] then
    answers[#answers][4] = redis.call('PUBSUB', 'SHARDNUMSUB', KEYS[i + 2])[2]
  end
end
return answers
