// The jobs that are listed: the newest ones, kept fresh, and as many older ones as somebody has asked for.

import { get } from "./api.js";
import { isFinal } from "./live.js";

const PAGE = 50;
const OLDER = 100;

/** Jobs in a state, or in any; `.jobs` are those known, the newest first. */
export class JobPages {
  constructor(state) {
    this.state = state;
    this.jobs = null;
    this.end = null; // the id below which nothing was asked for yet; null when there is nothing more
  }

  get hasMore() {
    return this.end !== null;
  }

  /** Ask for the newest, and again for every stretch of older ones in which something is under way. */
  async refresh(signal) {
    let from = null;
    do {
      const { jobs, end } = await this.#ask(from, PAGE, signal);
      const isApart = from === null && end !== null && !this.jobs?.some((job) => job.id >= end);
      if (isApart) [this.jobs, this.end] = [jobs, end]; // the first look, or so many are new that a gap would be left
      else this.#take(from, jobs, end);
      const at = end === null ? -1 : this.jobs.findIndex((job) => job.id < end && !isFinal(job));
      // Ids, by their order: what lies between is settled, or known to be there no more.
      from = at < 0 ? null : [end, this.jobs[at - 1]?.id ?? end].sort()[0];
    } while (from !== null);
  }

  /** Ask for those before the oldest. */
  async older(signal) {
    const from = this.end;
    const { jobs, end } = await this.#ask(from, OLDER, signal);
    if (this.end !== from) return; // the list has begun anew meanwhile
    this.#take(from, jobs, end);
    this.end = end;
  }

  /** One job has changed, or is new. */
  change(job) {
    if (this.jobs === null) return;
    const others = this.jobs.filter((known) => known.id !== job.id);
    const isWanted = (!this.state || this.state === job.state) && (this.end === null || job.id >= this.end);
    this.jobs = isWanted ? sorted([job, ...others]) : others;
  }

  async #ask(before, limit, signal) {
    const wanted = new URLSearchParams({ limit, ...(before && { before }), ...(this.state && { state: this.state }) });
    const { data, next } = await get(`v1/jobs?${wanted}`, signal);
    // Its path is the API's own idea of it: behind a proxy that strips one, only the cursor holds.
    return { jobs: data, end: next && new URLSearchParams(next.split("?")[1]).get("before") };
  }

  /** Put what was answered in place of what was known between `from` and `end`. */
  #take(from, jobs, end) {
    const isElsewhere = ({ id }) => (from !== null && id >= from) || (end !== null && id < end);
    this.jobs = sorted([...(this.jobs ?? []).filter(isElsewhere), ...jobs]);
    if (end === null) this.end = null;
  }
}

const sorted = (jobs) => jobs.sort((a, b) => (a.id < b.id ? 1 : -1));
