-- A worker gives up a unit it holds: released (no reason), failed but worth another try, or failed for good.
-- ARGV: now, job, index, attempt, worker, reason or '', max attempts, final ('1' or '0'), delay in seconds
-- Returns 'again' | 'failed' | 'cancelled' | 'stale'
local at, job, index, worker = now(), ARGV[2], ARGV[3], ARGV[5]
local member = member_of(job, index)
local attempt, holder = flight_of(member)
if attempt ~= tonumber(ARGV[4]) or holder ~= worker then return 'stale' end
local reason = ARGV[6] ~= '' and ARGV[6] or nil
-- For good is: this strike is the last.
return give_back(member, at, reason, ARGV[8] == '1' and 0 or tonumber(ARGV[7]), nil, tonumber(ARGV[9]))
