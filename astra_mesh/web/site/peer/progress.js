// Telling the coordinator how far the shard is, while somebody looks on. As astra_mesh/peer/progress.py.

import { PROGRESS_MARKS, PROGRESS_S } from "./limits.js";
import { make } from "./messages.js";

/** Send new marks of a timeline now and then; the result ends it, with the last ones. */
export function telling(link, request, timeline) {
  let told = 0;
  const tell = () => {
    while (told < timeline.moments.length) {
      const some = timeline.moments.slice(told, told + PROGRESS_MARKS);
      told += some.length;
      link.sendIfOpen(make("Progress", { request, marks: some.flat() }));
    }
  };
  const timer = setInterval(tell, 1000 * PROGRESS_S);
  return () => {
    clearInterval(timer);
    tell();
  };
}
