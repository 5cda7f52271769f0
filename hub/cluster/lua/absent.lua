-- Finds the devices of dead nodes, and takes away those whose grace is over. Answers how many it took away.
-- KEYS  1 holders     ARGV  1 presence prefix  2 grace (ms)  3 how many at most  4 how long records are kept (ms)
local prefix, grace, most, keep = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local lapsed = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'WITHSCORES', 'LIMIT', 0, 20)
for i = 1, #lapsed, 2 do
  local incarnation, ended = lapsed[i], tonumber(lapsed[i + 1])
  local left = redis.call('PTTL', prefix .. 'lease:' .. incarnation)
  if left > 0 then
    redis.call('ZADD', KEYS[1], now + left, incarnation)
  else
    local held = prefix .. 'users:' .. incarnation
    for _, member in ipairs(redis.call('SPOP', held, most)) do
      local at = member:find('|', 1, true)
      local stored = redis.call('HGET', prefix .. 'user:' .. member:sub(at + 1), 's:' .. member:sub(1, at - 1))
      -- Unless its node lives on under another name, and has brought it back.
      if stored and stored:sub(2) == incarnation then
        redis.call('ZADD', prefix .. 'parting', 'NX', ended, member)
      end
    end
    if redis.call('SCARD', held) == 0 then
      redis.call('ZREM', KEYS[1], incarnation)
    end
  end
end

local rung, taken = {}, 0
local over = redis.call('ZRANGEBYSCORE', prefix .. 'parting', '-inf', now - grace, 'WITHSCORES', 'LIMIT', 0, most)
for i = 1, #over, 2 do
  local member, since = over[i], over[i + 1]
  local at = member:find('|', 1, true)
  local session, who = member:sub(1, at - 1), member:sub(at + 1)
  local record = prefix .. 'user:' .. who
  redis.call('ZREM', prefix .. 'parting', member)
  local stored = redis.call('HGET', record, 's:' .. session)
  if stored then
    taken = taken + 1
    redis.call('HDEL', record, 's:' .. session)
    redis.call('SREM', prefix .. 'users:' .. stored:sub(2), member)
    local devices = 0
    for _, field in ipairs(redis.call('HKEYS', record)) do
      if field:sub(1, 2) == 's:' then
        devices = devices + 1
      end
    end
    if devices == 0 then
      redis.call('HSET', record, 'seen', since)
      redis.call('PEXPIRE', record, keep)
    end
    local tenant = who:sub(1, 36)
    rung[tenant] = rung[tenant] or {}
    table.insert(rung[tenant], who:sub(38))
  end
end
for tenant, users in pairs(rung) do
  redis.call('SPUBLISH', prefix .. 'bell:' .. tenant, cjson.encode(users))
end
return taken
