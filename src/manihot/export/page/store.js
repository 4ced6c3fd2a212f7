// What the page keeps on the device: photographs with their answers, in IndexedDB; where that is refused, in memory.

const NAME = 'manihot', TABLES = ['photographs', 'files'];

const done = request => new Promise((resolve, reject) => {
  request.onsuccess = () => resolve(request.result);
  request.onerror = () => reject(request.error);
});

/** In memory, gone when the page is closed. */
class Memory {
  constructor(why) {
    this.lasting = false;
    this.why = why;
    this.tables = Object.fromEntries(TABLES.map(name => [name, new Map()]));
  }

  async all() { return [...this.tables.photographs.values()]; }
  async file(id) { return this.tables.files.get(id); }
  async change(records) { for (const one of records) this.tables.photographs.set(one.id, one); }

  async add(record, file) {
    this.tables.files.set(record.id, file);
    await this.change([record]);
  }

  async remove(ids) { for (const name of TABLES) for (const id of ids) this.tables[name].delete(id); }
}

class Database {
  constructor(database) {
    this.lasting = true;
    this.why = '';
    this.database = database;
  }

  /** Runs `work` on the tables as one change, all of it or nothing. */
  async within(work) {
    const change = this.database.transaction(TABLES, 'readwrite');
    const ended = new Promise((resolve, reject) => {
      change.oncomplete = resolve;
      change.onabort = change.onerror = () => reject(change.error || new Error('stopped'));
    });
    work(...TABLES.map(name => change.objectStore(name)));
    await ended;
  }

  all() { return done(this.database.transaction('photographs').objectStore('photographs').getAll()); }
  async file(id) { return (await done(this.database.transaction('files').objectStore('files').get(id)))?.bytes; }
  change(records) { return this.within(photographs => records.forEach(one => photographs.put(one))); }
  add(record, file) {
    return this.within((photographs, files) => {
      photographs.put(record);
      files.put({id: record.id, bytes: file});
    });
  }

  remove(ids) {
    return this.within((photographs, files) => ids.forEach(id => {
      photographs.delete(id);
      files.delete(id);
    }));
  }
}

/** The store of this device. Photographs are ordered by when they were added. */
export async function openStore() {
  try {
    const request = indexedDB.open(NAME, 1);
    request.onupgradeneeded = () => TABLES.forEach(name => request.result.createObjectStore(name, {keyPath: 'id'}));
    const database = await done(request);
    database.onversionchange = () => database.close();
    navigator.storage?.persist?.();
    return new Database(database);
  } catch (error) {
    return new Memory(String(error?.message || error));
  }
}

/** A choice of the user, such as the language; where the browser keeps none, it holds until the page is closed. */
const chosen = new Map();
export function remembered(name) {
  try {
    return localStorage.getItem(`${NAME}-${name}`) ?? chosen.get(name) ?? '';
  } catch {
    return chosen.get(name) ?? '';
  }
}
export function remember(name, value) {
  chosen.set(name, value);
  try {
    localStorage.setItem(`${NAME}-${name}`, value);
  } catch {
    // kept in `chosen` alone
  }
}
