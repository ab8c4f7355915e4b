-- What whoever watches is told, and what it reads then.
--
-- channel changes  the id of a job that is not as it was. A hint: what is told while nobody listens is lost
-- job:<id>:log     four bytes for each image that was stored, failed or cancelled by itself, in the order of these
--                  ends: its index, and in the two highest bits which of them it was. A retried image has several

local STORED, FAILED, CANCELLED = 0, 1, 2

local function tell_of_change(job) redis.call('PUBLISH', P .. 'changes', job) end

-- Note that an image has ended. Its job is told of by whoever ends it.
local function note_end(job, index, what)
  redis.call('APPEND', job_key(job) .. ':log', struct.pack('>I4', what * 1073741824 + tonumber(index)))
end
