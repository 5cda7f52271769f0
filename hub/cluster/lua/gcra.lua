-- Generic cell rate algorithm: `times` at once, refilled evenly. Answers 0, or the milliseconds until the next one.
-- KEYS  1 the limit     ARGV  1 interval between two (ms, may be fractional)  2 how far ahead one may be (ms)
--                             3 1: count it, 0: only look, -1: take one back
local time = redis.call('TIME')
local now = time[1] * 1000 + time[2] / 1000
local interval, ahead = tonumber(ARGV[1]), tonumber(ARGV[2])
local due = math.max(tonumber(redis.call('GET', KEYS[1]) or 0), now)
if ARGV[3] == '-1' then
  if due > now then
    redis.call('SET', KEYS[1], string.format('%.3f', due - interval), 'PX', math.ceil(due - now) + 1)
  end
  return 0
end
local next = due + interval
-- Half a millisecond of slack: intervals are fractions.
if next - now > ahead + 0.5 then
  return math.ceil(next - now - ahead)
end
if ARGV[3] == '0' then
  return 0
end
redis.call('SET', KEYS[1], string.format('%.3f', next), 'PX', math.ceil(next - now) + 1)
return 0
