-- Finds sessions of dead nodes, and participants whose grace has ended. Answers {interrupted now, lost}: lists of JSON
-- objects {call_id, entry, since_ms}. A lost participant is handed to one caller; if that one does not confirm in time (it
-- may have died), to another.
-- KEYS  1 incarnations     ARGV  1 presence prefix  2 grace (ms)  3 how many at most  4 time to confirm (ms)
local prefix, grace, most = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local interrupted, lost = {}, {}

local function told(call, entry, since)
  return string.format('{"call_id":"%s","entry":%s,"since_ms":%.0f}', call, entry, since)
end

local function interrupt(incarnation, call, session, since)
  local roster = prefix .. 'roster:' .. call
  local stored = redis.call('HGET', roster, session)
  local entry = stored and cjson.decode(stored)
  if entry and entry.incarnation == incarnation and entry.state == 'live' then
    entry.state = 'interrupted'
    stored = cjson.encode(entry)
    redis.call('HSET', roster, session, stored)
    redis.call('ZADD', prefix .. 'interrupted', since, call .. '|' .. session)
    interrupted[#interrupted + 1] = told(call, stored, since)
  end
end

local lapsed = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'WITHSCORES', 'LIMIT', 0, 20)
for i = 1, #lapsed, 2 do
  local incarnation, ended = lapsed[i], tonumber(lapsed[i + 1])
  local left = redis.call('PTTL', prefix .. 'lease:' .. incarnation)
  if left > 0 then
    redis.call('ZADD', KEYS[1], now + left, incarnation)
  else
    local held = prefix .. 'held:' .. incarnation
    for _, member in ipairs(redis.call('SPOP', held, most)) do
      -- "r|<call>|<session>" or "s|<tenant>|<session>", with ids of 36 characters.
      local kind, id, session = member:sub(1, 1), member:sub(3, 38), member:sub(40)
      if kind == 'r' then
        interrupt(incarnation, id, session, ended)
      else
        redis.call('HDEL', prefix .. 'sessions:' .. id, session)
      end
    end
    if redis.call('SCARD', held) == 0 then
      redis.call('ZREM', KEYS[1], incarnation)
      redis.call('HDEL', prefix .. 'nodes', incarnation)
    end
  end
end

local function claim(call, session, since)
  local roster, people = prefix .. 'roster:' .. call, prefix .. 'people:' .. call
  local member = call .. '|' .. session
  redis.call('ZREM', prefix .. 'interrupted', member)
  local stored = redis.call('HGET', roster, session)
  if not stored then
    return
  end
  local entry = cjson.decode(stored)
  redis.call('HDEL', roster, session)
  redis.call('SREM', prefix .. 'held:' .. entry.incarnation, 'r|' .. member)
  redis.call('ZADD', prefix .. 'gone', now, member)
  local kept = {}
  for _, other in ipairs(cjson.decode(redis.call('HGET', people, entry.participant_id) or '[]')) do
    if other ~= session then
      kept[#kept + 1] = other
    end
  end
  if #kept > 0 then
    -- The participant is still here by another session.
    redis.call('HSET', people, entry.participant_id, cjson.encode(kept))
    return
  end
  redis.call('HDEL', people, entry.participant_id)
  local who = call .. '|' .. entry.participant_id
  local text = told(call, stored, since)
  redis.call('HSET', prefix .. 'claims', who, text)
  redis.call('ZADD', prefix .. 'claimed', now + ARGV[4], who)
  lost[#lost + 1] = text
end

local over = redis.call('ZRANGEBYSCORE', prefix .. 'interrupted', '-inf', now - grace, 'WITHSCORES', 'LIMIT', 0, most)
for i = 1, #over, 2 do
  claim(over[i]:sub(1, 36), over[i]:sub(38), tonumber(over[i + 1]))
end

for _, who in ipairs(redis.call('ZRANGEBYSCORE', prefix .. 'claimed', '-inf', now, 'LIMIT', 0, most)) do
  local text = redis.call('HGET', prefix .. 'claims', who)
  if text then
    redis.call('ZADD', prefix .. 'claimed', now + ARGV[4], who)
    lost[#lost + 1] = text
  else
    redis.call('ZREM', prefix .. 'claimed', who)
  end
end

-- Long enough for any node that was away to learn that its sessions are gone.
redis.call('ZREMRANGEBYSCORE', prefix .. 'gone', '-inf', now - 600000)
return {interrupted, lost}
