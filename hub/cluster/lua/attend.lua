-- Sessions come into rooms, lose their sockets or leave; many in one call, each as if it were alone, in their order.
-- Answers a word for each: 'ok'; 'none' (not in the room, or another living node's: nothing changed); 'fenced' (the lease
-- of its node has lapsed); 'gone' (registered again after its grace had ended); 'failed' (what is stored cannot be read).
-- KEYS  roster of the room, for each
-- ARGV  1 presence prefix  then for each: 'live' | 'interrupted' (it enters, as that) | 'lost' | 'left', call, session,
--       incarnation, participant, entry (JSON), '1' when a node brings back what it had registered before;
--       the last three of those that enter, else empty
-- All keys made from the prefix are in the slot of KEYS[1].
local prefix = ARGV[1]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local leases = {}
local function lives(incarnation)
  if leases[incarnation] == nil then
    leases[incarnation] = redis.call('EXISTS', prefix .. 'lease:' .. incarnation) == 1
  end
  return leases[incarnation]
end

local function enter(roster, state, call, session, incarnation, participant, text, again)
  local member, mate = call .. '|' .. session, call .. '|' .. participant
  if not lives(incarnation) then
    return 'fenced'
  end
  if again == '1' and redis.call('ZSCORE', prefix .. 'gone', member) then
    return 'gone'
  end
  local people = prefix .. 'people:' .. call
  local listed = redis.call('HGET', people, participant)
  local kept = {session}
  if listed then
    for _, other in ipairs(cjson.decode(listed)) do
      local stored = other ~= session and redis.call('HGET', roster, other)
      if stored then
        local entry = cjson.decode(stored)
        if state ~= 'live' or (entry.state == 'live' and lives(entry.incarnation)) then
          kept[#kept + 1] = other
        else
          -- The participant is back: nobody waits for the session that was lost.
          redis.call('HDEL', roster, other)
          redis.call('ZREM', prefix .. 'interrupted', call .. '|' .. other)
          redis.call('SREM', prefix .. 'held:' .. entry.incarnation, 'r|' .. call .. '|' .. other)
        end
      end
    end
  end
  redis.call('HSET', people, participant, cjson.encode(kept))
  redis.call('HSET', roster, session, text)
  redis.call('SADD', prefix .. 'held:' .. incarnation, 'r|' .. member)
  redis.call('ZREM', prefix .. 'gone', member)
  if state == 'live' then
    redis.call('ZREM', prefix .. 'interrupted', member)
    redis.call('ZREM', prefix .. 'claimed', mate)
    redis.call('HDEL', prefix .. 'claims', mate)
  else
    redis.call('ZADD', prefix .. 'interrupted', now, member)
  end
  return 'ok'
end

-- The socket is lost: the grace begins.
local function interrupt(roster, call, session, incarnation)
  local stored = redis.call('HGET', roster, session)
  if not stored or not lives(incarnation) then
    return 'none'
  end
  local entry = cjson.decode(stored)
  if entry.incarnation ~= incarnation or entry.state ~= 'live' then
    return 'none'
  end
  entry.state = 'interrupted'
  redis.call('HSET', roster, session, cjson.encode(entry))
  redis.call('ZADD', prefix .. 'interrupted', now, call .. '|' .. session)
  return 'ok'
end

-- Not what is another living node's: a node that was away must not remove what moved elsewhere.
local function leave(roster, call, session, incarnation)
  local stored = redis.call('HGET', roster, session)
  if not stored then
    return 'none'
  end
  local entry = cjson.decode(stored)
  if entry.incarnation ~= incarnation and lives(entry.incarnation) then
    return 'none'
  end
  redis.call('HDEL', roster, session)
  redis.call('ZREM', prefix .. 'interrupted', call .. '|' .. session)
  redis.call('SREM', prefix .. 'held:' .. entry.incarnation, 'r|' .. call .. '|' .. session)
  local people = prefix .. 'people:' .. call
  local kept = {}
  for _, other in ipairs(cjson.decode(redis.call('HGET', people, entry.participant_id) or '[]')) do
    if other ~= session then
      kept[#kept + 1] = other
    end
  end
  if #kept == 0 then
    redis.call('HDEL', people, entry.participant_id)
  else
    redis.call('HSET', people, entry.participant_id, cjson.encode(kept))
  end
  return 'ok'
end

local function change(roster, what, call, session, incarnation, participant, entry, again)
  if what == 'lost' then
    return interrupt(roster, call, session, incarnation)
  elseif what == 'left' then
    return leave(roster, call, session, incarnation)
  end
  return enter(roster, what, call, session, incarnation, participant, entry, again)
end

local answers = {}
for i, roster in ipairs(KEYS) do
  -- What cannot be read of one must not hold up the others.
  local well, answer = pcall(change, roster, unpack(ARGV, 7 * i - 5, 7 * i + 1))
  answers[i] = well and answer or 'failed'
end
return answers
