-- Devices of users come, change and go, many in one call. Answers 1, or 0 when the lease has lapsed.
-- KEYS  1 lease of the incarnation
-- ARGV  1 presence prefix  2 incarnation  3 how long the record of somebody without a device is kept (ms)
--       then for each: tenant, user, session, 'here' | 'parting' | 'gone', '1' if it is in a call
-- A record is user:<tenant>:<user>: 's:<session>' → '1' or '0' and the incarnation; 'choice', 'seen' → see choose.lua.
local prefix, incarnation, keep = ARGV[1], ARGV[2], ARGV[3]
local left = redis.call('PTTL', KEYS[1])
if left < 0 then
  return 0
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
-- Where those are found who went with their node: when to look at its lease again.
redis.call('ZADD', prefix .. 'holders', now + left, incarnation)
local rung = {}
for i = 4, #ARGV, 5 do
  local tenant, user, session, how, in_call = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3], ARGV[i + 4]
  local who = tenant .. ':' .. user
  local record, member = prefix .. 'user:' .. who, session .. '|' .. who
  if how == 'gone' then
    redis.call('HDEL', record, 's:' .. session)
    redis.call('ZREM', prefix .. 'parting', member)
    redis.call('SREM', prefix .. 'users:' .. incarnation, member)
  else
    redis.call('HSET', record, 's:' .. session, in_call .. incarnation)
    redis.call('SADD', prefix .. 'users:' .. incarnation, member)
    if how == 'parting' then
      redis.call('ZADD', prefix .. 'parting', 'NX', now, member)
    else
      redis.call('ZREM', prefix .. 'parting', member)
    end
  end
  local devices = 0
  for _, field in ipairs(redis.call('HKEYS', record)) do
    if field:sub(1, 2) == 's:' then
      devices = devices + 1
      -- Back in a call by another device: the lost one is no longer what holds them there.
      if how == 'here' and in_call == '1' and redis.call('ZSCORE', prefix .. 'parting', field:sub(3) .. '|' .. who) then
        redis.call('HSET', record, field, '0' .. redis.call('HGET', record, field):sub(2))
      end
    end
  end
  if devices > 0 then
    redis.call('PERSIST', record)
  else
    redis.call('HSET', record, 'seen', now)
    redis.call('PEXPIRE', record, keep)
  end
  rung[tenant] = rung[tenant] or {}
  table.insert(rung[tenant], user)
end
for tenant, users in pairs(rung) do
  redis.call('SPUBLISH', prefix .. 'bell:' .. tenant, cjson.encode(users))
end
return 1
