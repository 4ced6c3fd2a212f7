"use strict";
// Where answers are kept: each is appended as a line of its own and never changed. In a file that was opened, the
// browser's IndexedDB, or localStorage where that is blocked; on a server, its database, with IndexedDB for what it has
// not confirmed yet.

function openDatabase(name) {
  return new Promise((done, failed) => {
    if (!window.indexedDB) { failed(new Error("no IndexedDB")); return; }
    const asked = indexedDB.open(name, 1);
    asked.onupgradeneeded = () => asked.result.createObjectStore("answers", {keyPath: "key"});
    asked.onsuccess = () => done(asked.result);
    asked.onerror = asked.onblocked = () => failed(asked.error || new Error("blocked"));
  });
}

function inDatabase(database, mode, work) {
  return new Promise((done, failed) => {
    const transaction = database.transaction("answers", mode, {durability: "strict"});
    const asked = work(transaction.objectStore("answers"));
    transaction.oncomplete = () => done(asked.result);
    transaction.onerror = transaction.onabort = () => failed(transaction.error || new Error("not stored"));
  });
}

class IndexedStore {
  constructor(database) { this.database = database; this.lasting = true; }
  static async open(name) {
    const store = new IndexedStore(await openDatabase(name));
    await store.all();
    return store;
  }
  async all() {
    const lines = await inDatabase(this.database, "readonly", store => store.getAll());
    return lines.sort((a, b) => a.order - b.order);
  }
  append(line) { return inDatabase(this.database, "readwrite", store => store.put(line)); }
  remove(keys) {
    return inDatabase(this.database, "readwrite", store => { let last = {}; for (const key of keys) last = store.delete(key); return last; });
  }
}

class LocalStore {
  constructor(name) {
    this.prefix = name + "/"; this.lasting = true;
    localStorage.setItem(this.prefix + "test", "1");  // throws where it is blocked
    localStorage.removeItem(this.prefix + "test");
  }
  async all() {
    const keys = Object.keys(localStorage).filter(key => key.startsWith(this.prefix));
    return keys.map(key => JSON.parse(localStorage.getItem(key))).sort((a, b) => a.order - b.order);
  }
  async append(line) { localStorage.setItem(this.prefix + line.key, JSON.stringify(line)); }
  async remove(keys) { for (const key of keys) localStorage.removeItem(this.prefix + key); }
}

class MemoryStore {
  constructor() { this.lines = []; this.lasting = false; }
  async all() { return [...this.lines]; }
  async append(line) { this.lines.push(line); }
  async remove(keys) { this.lines = this.lines.filter(line => !keys.includes(line.key)); }
}

async function openStore(name) {
  try { return await IndexedStore.open(name); } catch { /* blocked: the next one */ }
  try { return new LocalStore(name); } catch { return new MemoryStore(); }
}

// Sends what the store holds to the server, which confirms each line once it is on its disk; only then is it removed.
class Sender {
  constructor(store, changed) { this.store = store; this.changed = changed; this.busy = false; this.waiting = 0; this.problem = ""; this.wait = 500; }
  async send() {
    if (this.busy) { this.again = true; return; }
    this.busy = true;
    do {
      this.again = false;
      const lines = (await this.store.all()).slice(0, 100);
      this.waiting = lines.length;
      if (lines.length) {
        try {
          const answer = await fetch("api/answers", {method: "POST", headers: {"Content-Type": "application/json"}, body: JSON.stringify({answers: lines.map(({order, ...line}) => line)})});
          if (!answer.ok) throw new Error((await answer.json().catch(() => ({}))).detail || `the server answered ${answer.status}`);
          await this.store.remove((await answer.json()).stored);
          this.problem = ""; this.wait = 500; this.again = true;
        } catch (error) {
          this.problem = error instanceof TypeError ? "the server can't be reached" : error.message;
          setTimeout(() => this.send(), this.wait);
          this.wait = Math.min(2 * this.wait, 15000);
        }
      }
      this.waiting = (await this.store.all()).length;
      this.changed();
    } while (this.again);
    this.busy = false;
  }
}
