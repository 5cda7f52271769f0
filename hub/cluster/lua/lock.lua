-- Take or keep a lock. Answers the fencing token, 0 if another holds it. Tokens only grow.
-- KEYS  1 lock  2 fence     ARGV  1 holder  2 ttl (ms)  3 token when renewing, else ''
local held = redis.call('GET', KEYS[1])
if ARGV[3] ~= '' then
  -- Never taken anew while renewing: somebody may have held it in between.
  if held ~= ARGV[1] .. ':' .. ARGV[3] then
    return 0
  end
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
  return tonumber(ARGV[3])
end
if held then
  return 0
end
local token = redis.call('INCR', KEYS[2])
-- Data that Redis lost takes the counter with it; the clock keeps tokens growing all the same.
local time = redis.call('TIME')
local least = time[1] * 1000 + math.floor(time[2] / 1000)
if token < least then
  token = least
  redis.call('SET', KEYS[2], string.format('%.0f', token))
end
redis.call('SET', KEYS[1], ARGV[1] .. ':' .. string.format('%.0f', token), 'PX', ARGV[2])
return token
