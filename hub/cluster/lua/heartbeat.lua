-- A node says that it lives. Answers {1 | 0, Redis' time in ms}; 0: the lease had lapsed, this incarnation is over.
-- KEYS  1 lease of the incarnation  2 nodes  3 incarnations  4 lately
-- ARGV  1 incarnation  2 node id  3 info (JSON)  4 lease (ms)  5 '1' for the first beat of an incarnation
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if ARGV[5] ~= '1' and redis.call('EXISTS', KEYS[1]) == 0 then
  return {0, now}
end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[4])
redis.call('HSET', KEYS[2], ARGV[1], ARGV[3])
-- By name, and with the time: what is still shown of a node that was lost.
redis.call('HSET', KEYS[4], ARGV[2], string.format('%.0f ', now) .. ARGV[3])
-- Stays after the lease, so that the sessions of a dead incarnation are found.
redis.call('ZADD', KEYS[3], now + ARGV[4], ARGV[1])
return {1, now}
